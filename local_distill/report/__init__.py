"""One self-contained HTML page about one run, or several to compare.

reading.py reads a run's folder, curves.py and tokens.py lay its numbers out for the page's scripts, tables.py its
settings, progress.py says how far it is, page.py renders. following.py reads on while the run goes on, serving.py
serves the same page, part by part as it changes. Nothing in here imports torch: the page is there at once.
"""
