"""A zoo of models: tiny ones of every type, trained by two trainers over real bridges and a real parameter server."""
