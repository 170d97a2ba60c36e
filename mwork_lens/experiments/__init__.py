"""The paper's items as named experiments: each measures, and fills a results folder with tables, figures, settings.

One file an experiment, or a row in a table of settings where several differ in little else; ``folder.py`` writes all of
their results.
"""
