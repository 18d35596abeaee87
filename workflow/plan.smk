# Every job of a family: the parameters of its notebook, the files that it must write, and what it needs.
PLAN, PROBLEMS = {}, []  # receipt -> (parameters, files, needs); what is wrong with any of them


def job(study, verb, files, needs, recipe="", **parameters):
    """Note a job with its checked parameters; its receipt."""
    receipt = f"data/runs/{study}/{JOBS[verb]}.json".format(recipe=recipe)
    given = {"study": study} | ({"recipe": recipe} if recipe else {}) | parameters | FAMILY.parameters.get(notebook(verb).stem, {})
    try:
        PLAN[receipt] = run_notebook.check(notebook(verb), given), files, needs
    except InputError as error:
        PROBLEMS.append(f"{receipt}: {error}")
    return receipt


def tables(study, names):
    return [f"data/results/{study}/{name}" for name in names.split()]


def figures(study, names):
    return [f"figures/{study}/{name}.png" for name in names.split()]


def user_files(study):
    """The files that a study is read from; docstrings come from the installed packages."""
    given = FAMILY.studies[study]
    source = run_notebook.check(notebook("data_prep"), {"study": study} | given).get("source", "docstrings")
    if source == "docstrings":
        return []
    from asymlib.data import studies  # slow, and not needed for docstrings

    return studies.input_files(source, given)


def plan():
    main, prepared, heads = FAMILY.study, {}, {}
    if wrong := sorted(set(FAMILY.parameters) - {notebook(verb).stem for verb in JOBS}):
        raise InputError(f"config: parameters: {wrong[0]!r} is no notebook; there are {', '.join(notebook(verb).stem for verb in JOBS)}")
    gate = [job(main, "parity", tables(main, "parity.csv"), [], collections=FAMILY.parity)] if FAMILY.parity else []
    for study in sorted(FAMILY.studies, key=lambda name: name != main):  # the main one first, alone: a fresh cache must always
        needs = [prepared[main]] if prepared else gate                   # encode the same texts in the same batches
        files = [f"data/prepared/{study}/", *tables(study, "texts.csv")]
        prepared[study] = job(study, "data_prep", files, needs + user_files(study), **FAMILY.studies[study])
    for study in FAMILY.trained:
        heads[study] = [
            job(study, "train_heads", [f"data/runs/{study}/heads/{recipe}/{name}" for name in ("config.json", "heads.safetensors", "history.parquet")],
                [prepared[study]], recipe=recipe, seeds=FAMILY.seeds, changes=FAMILY.changes.get(recipe, {}))
            for recipe in FAMILY.recipes
        ]  # fmt: skip
    searched = {study: f"data/runs/{study}/{JOBS['select_head']}.json" for study in FAMILY.search}
    for study, given in FAMILY.search.items():
        files = [f"data/runs/{study}/heads/best-head/{name}" for name in ("config.json", "heads.safetensors")]
        files += [] if given.get("recipe_from") else tables(study, "search.csv")
        needs = [prepared[given["transfer"]]] if given.get("transfer") else []
        needs += [searched[given["recipe_from"]]] if given.get("recipe_from") else []
        heads[study] = heads[study] + [job(study, "select_head", files, [prepared[study], *needs], **given)]

    def systems(study):
        return {"systems": FAMILY.recipes + ["best-head"] * (study in searched)}

    wide = {"others": FAMILY.joined[1:]} | systems(main)
    every = [receipt for study in FAMILY.joined for receipt in heads[study]]
    in_domain = any(FAMILY.studies[study].get("labels") for study in FAMILY.joined)
    job(main, "magnitude", tables(main, "history.parquet attribution.csv case_log.csv trajectory.csv warnings.csv")
        + figures(main, "signature growth_split"), [receipt for receipt in heads[main] if receipt != searched.get(main)],
        systems=FAMILY.recipes)  # fmt: skip
    measured = "systems.csv per_query.parquet recipes.csv contrasts.csv hubness.csv ties.csv length_relevance.csv overlap.csv"
    judged = job(main, "evaluation", tables(main, measured + " choices.csv" * (main in searched)) + figures(main, "length_relevance hubness"),
        every, **wide)  # fmt: skip
    for study in FAMILY.apart:
        job(study, "evaluation", tables(study, "systems.csv per_query.parquet"), heads[study], **systems(study))
    job(main, "robustness", tables(main, "similarity_matrix.csv checkpoints.csv" + " answers_met.csv" * in_domain)
        + figures(main, "similarity_matrix"), [judged, *every], **wide)  # fmt: skip
    job(main, "ablation", tables(main, "ablations.csv ablation_effects.csv") + figures(main, "ablation"), [prepared[main]])
    if FAMILY.oracle:
        job(main, "oracle", tables(main, "oracle.csv") + figures(main, "oracle"), [prepared[main]])
    job(main, "writeup", [f"data/results/{main}/writeup.html"], [receipt for receipt in PLAN if JOBS["writeup"] not in receipt])
