"""The HTTP service: `app.create_app` makes it of a model, ``python -m grood_jax.serve`` runs it.

Its modules need the packages of the extra ``serve``, ``pip install -e '.[serve]'``.
"""
