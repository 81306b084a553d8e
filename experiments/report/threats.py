"""What could be wrong with these results: read off the record, so that nobody has to remember to say it."""

from __future__ import annotations

from experiments.report.blocks import Block, Bullets, Heading, Piece, Span, Table
from experiments.report.material import Material, on_pairs, values
from experiments.words import count, listed

FEW_DEGREES = 5  # of freedom, below which the noise itself is hardly known


def section(m: Material) -> list[Block]:
    items: list[list[Piece]] = [
        *_tries(m), *_audit(m), *_machines(m), *_texts(m), *_noise(m), *_shortcuts(m), *_scope(m), *_failures(m),
    ]  # fmt: skip
    blocks: list[Block] = [Heading(text="Threats to validity"), Bullets(items=items)]
    if predictions := _predictions(m):
        blocks.append(predictions)
    return blocks


def _tries(m: Material) -> list[list[Piece]]:
    looks = sum(m.looks(record) for record in m.ended)
    items: list[list[Piece]] = [
        [Span(text="Many tries. ", style="strong"),
         f"{count(len(m.ended), 'experiment')} and {count(looks, 'look')}; the rule divides its error among them. "
         "All of them are in the table, not only the ones that worked."]
    ]  # fmt: skip
    if m.kept:
        items.append(
            [Span(text="Winner's curse. ", style="strong"),
             "Kept gains were kept for being large. Those measured on fresh pairs of runs were not chosen by the runs "
             "that measure them; the stopping rule still makes them somewhat too large."]
        )  # fmt: skip
    return items


def _audit(m: Material) -> list[list[Piece]]:
    head = Span(text="Selection on the validation text. ", style="strong")
    candidates = {score.run for record in m.records for score in record.scores}
    opened = [o for o in m.openings if o.get("run") in candidates]
    if not opened:
        others = f" (it was opened {count(len(m.openings), 'time')} for other runs)" if m.openings else ""
        said = (
            "Every score is on the text the choices were made by. The audit text was not opened for these "
            f"experiments{others}: how the best recipe does on text no decision has seen is not known."
        )
        return [[head, said]]
    scored = [o for o in opened if isinstance(o.get("val_bpb"), int | float)]
    told = "; ".join(f"{o['run']} {o['val_bpb']:.6g}" for o in scored[:8])
    said = f"The audit text was opened {count(len(opened), 'time')} for these experiments"
    return [[head, f"{said}{f' (val_bpb on it: {told})' if told else ''}. Each opening makes it a little less unseen."]]


def _machines(m: Material) -> list[list[Piece]]:
    machines = list(dict.fromkeys(score.machine for record in m.records for score in record.scores))
    head = Span(text="Hardware. ", style="strong")
    if len(machines) > 1:
        return [[head, f"Measured on {len(machines)} machines or software versions ({listed(machines[:4])}); each "
                       "comparison stays within one, the line of best scores does not."]]  # fmt: skip
    return [[head, "Everything was measured on one machine; another may order recipes otherwise, above all in budgets "
                   "of seconds."]]  # fmt: skip


def _texts(m: Material) -> list[list[Piece]]:
    identities = {score.on.get("data.identity") for record in m.records for score in record.scores} - {None}
    if len(identities) < 2:
        return []
    return [[Span(text="Text. ", style="strong"),
             f"The corpus changed between experiments ({len(identities)} different ones): each comparison stays within "
             "one, the line of best scores does not."]]  # fmt: skip


def _noise(m: Material) -> list[list[Piece]]:
    weak = [r.id for r in m.kept if r.numbers and r.numbers.df < FEW_DEGREES]
    items: list[list[Piece]] = []
    if weak:
        items.append([Span(text="Noise hardly known. ", style="strong"),
                      f"It rests on fewer than {FEW_DEGREES} degrees of freedom for {listed(weak[:8])}."])  # fmt: skip
    unconfirmed = [r.id for r in m.kept if not on_pairs(r)]
    if unconfirmed:
        items.append([Span(text="Not on fresh pairs. ", style="strong"),
                      f"{listed(unconfirmed[:8])} {'was' if len(unconfirmed) == 1 else 'were'} kept by an older rule, "
                      "or on a metric that does not vary."])  # fmt: skip
    return items


def _shortcuts(m: Material) -> list[list[Piece]]:
    items: list[list[Piece]] = []
    skipped = [record for record in m.ended if record.skip_test_run]
    if skipped:
        reasons = listed([f"{r.id} ({(r.skip_test_run or '')[:80]})" for r in skipped[:4]])
        items.append([Span(text="Without a test run: ", style="strong"), f"{reasons}."])
    several = [record.id for record in m.kept if record.hypothesis.parts > 1]
    if several:
        items.append([Span(text="Several changes at once: ", style="strong"),
                      f"{listed(several[:8])}; which of them did it is not known."])  # fmt: skip
    altered = [r.id for r in m.records if r.hypothesis.digest() != r.hypothesis_hash]
    if altered:
        items.append([Span(text="Altered after the fact: ", style="strong"),
                      f"the hypothesis of {listed(altered[:8])} is not the one that was frozen."])  # fmt: skip
    return items


def _scope(m: Material) -> list[list[Piece]]:
    sizes = values(m.summaries, "parameters.total")
    corpora = values(m.summaries, "data.corpus")
    where = []
    if sizes:
        low, high = min(sizes), max(sizes)
        where.append(f"models of {low:,} parameters" if low == high else f"models of {low:,} to {high:,} parameters")
    if corpora:
        where.append(f"the corpus {corpora[0]}" if len(corpora) == 1 else count(len(corpora), "corpus", "corpora"))
    said = f"Shown for {listed(where)} only" if where else "Shown for the recipe and text used only"
    said += ". Not measured: larger models, longer training, other text, tasks beyond the metric."
    return [[Span(text="Scope. ", style="strong"), said]]


def _failures(m: Material) -> list[list[Piece]]:
    gone = [r for r in m.ended if r.verdict in ("crash", "invalid")]
    if not gone:
        return []
    classes = sorted({r.failure_class or r.verdict or "" for r in gone})
    return [[Span(text="Not measured. ", style="strong"),
             f"{count(len(gone), 'experiment')} ended without a comparison ({listed(classes)}): nothing is known of "
             "these changes."]]  # fmt: skip


def _predictions(m: Material) -> Table | None:
    """What was foretold beside what was found, by proposer."""
    rows: list[list[Piece]] = []
    for proposer in dict.fromkeys(record.proposer for record in m.measured):
        told = [(r.hypothesis.predicted_effect, r.numbers) for r in m.measured if r.proposer == proposer]
        pairs = [(p, n) for p, n in told if p is not None and n is not None]
        if pairs:
            within = sum(n.low <= p <= n.high for p, n in pairs)
            predicted, found = sum(p for p, _ in pairs) / len(pairs), sum(n.effect for _, n in pairs) / len(pairs)
            rows.append([proposer, str(len(pairs)), f"{predicted:+.4g}", f"{found:+.4g}", f"{within / len(pairs):.0%}"])
    if not rows:
        return None
    columns = ["proposer", "predictions", "mean predicted gain", "mean measured gain", "predicted within the interval"]
    return Table(caption="Predictions beside measurements", columns=columns, rows=rows, right=[1, 2, 3, 4])
