"""Results for people: tables with their origin, figures from tables, claims about them."""
