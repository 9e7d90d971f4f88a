"""How fast, how large, how exact: one module for each question, which it states and answers with numbers and one figure.

``python -m benchmarks`` from the root of the repository asks all of them; see `benchmarks.__main__`.
"""
