"""The user's own models, functions and data: named by a reference or given as a Python object, and loaded alike.

A reference is ``timm:NAME``, ``torchvision:NAME``, ``transformers:NAME`` (a family such as distilbert, a name on the
hub or a folder), ``package.module:function`` or ``./file.py:function``. Every verb loads by this package, so that a
wrong reference gets one message. Importing it brings no torch.
"""
