"""Results of a run: files, pictures, report, film, TensorBoard."""
