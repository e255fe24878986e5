"""One self-contained HTML page about one run, or several to compare.

reading.py reads a run's folder, curves.py and tokens.py lay its numbers out for the page's scripts, tables.py its
settings, page.py renders. Nothing in here imports torch: the page is there at once.
"""
