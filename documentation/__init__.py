"""The documentation: the site, its generated pages, and the checks of its links and commands."""
