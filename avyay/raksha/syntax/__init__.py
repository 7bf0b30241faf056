"""A tolerant reader of Python, JavaScript, TypeScript and Go: tokens, functions, routes, value flow.

No grammar of one language version: text that the host's own parser would refuse is read as well, and what is not
understood is passed over, never an error.
"""
