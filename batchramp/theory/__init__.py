"""The theory: what is known of a problem."""

from batchramp.theory.problem import Problem

__all__ = ["Problem"]
