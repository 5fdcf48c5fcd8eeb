"""The shared core of the book: real encoders, losses, media readers and evaluation protocols.

Rooms and the direction of imports (arrows go downwards only):

    reporting, figures
    evaluation
    training
    losses, clustering, curation, attribution
    encoders
    data
    transforms
    media

Importing this package does no work; import the room you need.
"""

__version__ = "0.1.0"
