"""What is known of the licence of the bundled weights; README and the model card say the same."""

EDGE = """As far as this project owns the weights of `edge`, they are released under Apache-2.0; so
are EfficientNet-Lite and all-MiniLM-L6-v2, from which they were made. The photographs that taught
them belong to others: most sets allow non-commercial research only, some state no terms, and such
terms limit training with the photographs and passing them on. Whether they also bind a model that
was trained on the photographs is not settled. A company can evaluate with `edge`; for a product, it
should serve a public model whose licence it has checked, or train on photographs that it has the
rights to."""
