"""How reports and the pages for a browser look: read on a desk or a telephone, by day or by night, and printed."""

STYLE = """
:root { --ink: #1b1f24; --soft: #59636e; --line: #d9dee4; --paper: #ffffff; --wash: #f5f7f9; --blue: #0060a0;
  --keep: #006b4d; --keep-wash: #dff3ec; --bad: #a33b00; --bad-wash: #fdebdf; --open: #7a5200; --open-wash: #fdf2d8; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.6 "Iowan Old Style", Charter, "Source Serif 4", Georgia, "DejaVu Serif", serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1, h2, h3, table, nav, figcaption, .subtitle { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.1rem); line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
.subtitle { color: var(--soft); font-size: .85rem; margin: 0 0 1.5rem; max-width: none; }
nav { font-size: .85rem; border-block: 1px solid var(--line); padding: .6rem 0; margin-bottom: 1.5rem;
  display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
nav a, a { color: var(--blue); text-decoration: none; } nav a:hover { text-decoration: underline; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; scroll-margin-top: 1rem; }
p, ul { max-width: 44rem; margin: .6rem 0; overflow-wrap: anywhere; } li { margin: .35rem 0; }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--wash); padding: .08em .3em; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  overflow-x: auto; }
pre code { background: none; padding: 0; font-size: .82rem; line-height: 1.6; overflow-wrap: normal; }
figure { margin: 1.6rem 0; } figure svg { width: 100%; height: auto; display: block; background: #fff; }
figcaption { color: var(--soft); font-size: .82rem; line-height: 1.5; max-width: 44rem; margin-top: .5rem; }
.table { overflow-x: auto; margin: 1.4rem 0; } .table:focus-visible { outline: 2px solid var(--blue); }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.45; min-width: min(100%, 34rem); }
caption { text-align: left; font-weight: 600; padding: 0 0 .45rem; font-size: .9rem; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line);
  white-space: nowrap; }
td { border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { padding: .35rem .9rem .35rem 0; } th:last-child, td:last-child { padding-right: .2rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:first-child { white-space: nowrap; } td code { background: none; padding: 0; }
table.wide { font-size: .78rem; width: 100%; }
.wide td:nth-child(2) { min-width: 11rem; }
.verdict { display: inline-block; font: 600 .92em system-ui, "DejaVu Sans", sans-serif; padding: 0 .5em;
  border-radius: 1em; background: var(--wash); color: var(--soft); white-space: nowrap; }
.verdict.keep { background: var(--keep-wash); color: var(--keep); }
.verdict.crash, .verdict.invalid { background: var(--bad-wash); color: var(--bad); }
.verdict.inconclusive { background: var(--open-wash); color: var(--open); }
@media (max-width: 40rem) { body { font-size: 16px; } main { padding: 1.4rem 1rem 3rem; }
  .picture { overflow-x: auto; } .picture svg { min-width: 36rem; } }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a2abb5; --line: #3a424a; --paper: #15181b; --wash: #20252a; --blue: #7ab8f0;
    --keep: #6fd6b0; --keep-wash: #12382c; --bad: #f5a97f; --bad-wash: #43250f; --open: #ecc46a; --open-wash: #3d2f0e; }
  figure svg { border-radius: 6px; } }
@media print { body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  .table { overflow: visible; } table { page-break-inside: auto; } tr, figure { break-inside: avoid; }
  table.wide { font-size: 7.2pt; } thead { display: table-header-group; } }
"""
