"""The YAML recipes and the thin entry points that run them (`adadistill VERB`, `-m adadistill.recipes.VERB`)."""
