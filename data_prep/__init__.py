"""Builders of corpora: the procedural playground, and the public data sets.

The core never imports this package; chapters, tests and the command line do.
"""
