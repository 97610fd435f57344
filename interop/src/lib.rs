//! Wharf under the libraries of others. What there is stands in `examples/` and `tests/`.
