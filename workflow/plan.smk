# Every job of a family: the parameters of its notebook, the files that it must write (its receipt names the others, figures for
# example, as the job itself noted them), and what it needs.
PLAN, PROBLEMS = {}, []  # receipt -> (parameters, files, needs); what is wrong with any of them
USED = {}  # the part of JOBS that this family has


def job(study, verb, files, needs, recipe="", **parameters):
    """Note a job with its checked parameters; its receipt."""
    USED[verb] = JOBS[verb]
    receipt = f"data/runs/{study}/{JOBS[verb]}.json".format(recipe=recipe)
    given = {"study": study} | ({"recipe": recipe} if recipe else {}) | parameters | FAMILY.parameters.get(notebook(verb).stem, {})
    try:
        PLAN[receipt] = run_notebook.check(notebook(verb), given), files, needs
    except InputError as error:
        PROBLEMS.append(f"{receipt}: {error}")
    return receipt


def tables(study, names):
    return [f"data/results/{study}/{name}" for name in names.split()]


def user_files(study):
    """What a study stands on: the user's pairs, test collections and local encoder, or the lists of the packages' installed files."""
    given = FAMILY.studies[study] | FAMILY.parameters.get(notebook("data_prep").stem, {})
    try:
        given = run_notebook.check(notebook("data_prep"), given)
    except InputError:
        return []  # `job` says so
    encoder = HOME / given.get("encoder", "-")
    files = [str(path) for path in sorted(encoder.rglob("*")) if path.is_file()] if encoder.is_dir() else []
    from asymlib.data import docstrings, studies  # slow

    if (source := given.get("source", "docstrings")) != "docstrings":
        return there(files + studies.input_files(source, given), study)
    installed = [metadata.distribution(name)._path for name in docstrings.versions(given.get("packages") or docstrings.PACKAGES)]
    return there(files, study) + relative(folder / file for folder in installed for file in ("METADATA", "RECORD") if (folder / file).is_file())


def parity_files():
    """The collections of the gate."""
    from asymlib.data import collections, plans

    return there([str(plans.data_root() / "beir" / name / file) for name in FAMILY.parity for file in collections.FILES], "parity")


def there(files, what):
    """The files, all of which exist."""
    PROBLEMS.extend(f"{path}: no such file; {what} is read from it" for path in files if not os.path.isfile(path))
    return files


def ranked_apart(study, needs):
    """The jobs of what is no head on frozen vectors: each ranks its own systems, which 05_evaluation takes in."""
    made, main = [], study == FAMILY.study
    if FAMILY.words and study in FAMILY.joined:
        files = [f"data/runs/{study}/ranked/{system}.{kind}" for system in ("lexical", "lexical-head") for kind in ("parquet", "json")]
        files += tables(study, "words_ablation.csv words_cost.csv") if main else []
        given = [FAMILY.studies[name] for name in FAMILY.joined]
        alone = main and not any(one.get("source") == "target" and not one.get("labels") for one in given)
        made.append(job(study, "words", files, needs, seeds=FAMILY.seeds, ablation=main, alone=alone))
    if study in FAMILY.unfrozen:
        made.append(job(study, "unfrozen_top", tables(study, "unfrozen.csv"), needs, **FAMILY.unfrozen[study]))
    return made


def plan():
    main, prepared, heads = FAMILY.study, {}, {}
    if wrong := sorted(set(FAMILY.parameters) - {notebook(verb).stem for verb in JOBS}):
        raise InputError(f"config: parameters: {wrong[0]!r} is no notebook; there are {', '.join(notebook(verb).stem for verb in JOBS)}")
    gate = [job(main, "parity", tables(main, "parity.csv"), parity_files(), collections=FAMILY.parity)] if FAMILY.parity else []
    for study in sorted(FAMILY.studies, key=lambda name: name != main):  # the main one first, alone: a fresh cache must always
        needs = [prepared[main]] if prepared else gate                   # encode the same texts in the same batches
        files = [f"data/prepared/{study}/", *tables(study, "texts.csv")]
        try:
            needs = needs + user_files(study)
        except InputError as error:
            PROBLEMS.append(f"{study}: {error}")
        prepared[study] = job(study, "data_prep", files, needs, **FAMILY.studies[study])
    for study in FAMILY.trained:
        updates = {"updates": FAMILY.updates[study]} if study in FAMILY.updates else {}
        heads[study] = [
            job(study, "train_heads", [f"data/runs/{study}/heads/{recipe}/{name}" for name in ("config.json", "heads.safetensors", "history.parquet")],
                [prepared[study]], recipe=recipe, seeds=FAMILY.seeds, changes=FAMILY.changes.get(recipe, {}), **updates)
            for recipe in FAMILY.recipes_of(study)
        ]  # fmt: skip
    searched = {study: f"data/runs/{study}/{JOBS['select_head']}.json" for study in FAMILY.search}
    for study, given in FAMILY.search.items():
        files = [f"data/runs/{study}/heads/best-head/{name}" for name in ("config.json", "heads.safetensors")]
        files += [] if given.get("recipe_from") else tables(study, "search.csv")
        needs = [prepared[given["transfer"]]] if given.get("transfer") else []
        needs += [searched[given["recipe_from"]]] if given.get("recipe_from") else []
        heads[study] = heads[study] + [job(study, "select_head", files, [prepared[study], *needs], **given)]

    ranked = {study: ranked_apart(study, [prepared[study]]) for study in FAMILY.trained}

    def systems(study):
        return {"systems": FAMILY.recipes_of(study) + ["best-head"] * (study in searched)}

    more = {study: names for study, names in FAMILY.more.items() if study in FAMILY.joined}
    common = {"systems": FAMILY.recipes + ["best-head"] * (main in searched)} | ({"more": more} if more else {})
    others = {"others": FAMILY.joined[1:]}
    every = [receipt for study in FAMILY.joined for receipt in heads[study] + ranked[study]]
    in_domain = any(FAMILY.studies[study].get("labels") for study in FAMILY.joined)
    watched = [receipt for receipt in heads[main] if receipt != searched.get(main)]
    files = "history.parquet attribution.csv case_log.csv case_columns.csv trajectory.csv warnings.csv"
    job(main, "magnitude", tables(main, files), watched, systems=FAMILY.recipes_of(main))
    measured = "systems.csv per_query.parquet recipes.csv contrasts.csv hubness.csv ties.csv length_relevance.csv overlap.csv"
    judged = job(main, "evaluation", tables(main, measured + " choices.csv" * (main in searched)), every, **others, **common)
    for study in FAMILY.apart:
        job(study, "evaluation", tables(study, "systems.csv per_query.parquet"), heads[study] + ranked[study], **systems(study))
    files = "similarity_matrix.csv checkpoints.csv last_epoch.csv" + " answers_met.csv" * in_domain
    job(main, "robustness", tables(main, files), [judged, *every], **others, **systems(main))
    job(main, "ablation", tables(main, "ablations.csv ablation_effects.csv"), [prepared[main]])
    if FAMILY.oracle:
        job(main, "oracle", tables(main, "oracle.csv"), [prepared[main]])
    job(main, "writeup", [f"data/results/{main}/writeup.html"], [receipt for receipt in PLAN if JOBS["writeup"] not in receipt])
