"""The page of a recipe's results: read without trust, drawn, and written as one file that needs no other."""

from pipelines.recipes.page.write import write_page

__all__ = ["write_page"]
