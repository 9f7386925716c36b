"""What the processes of a worker agree on: configurations, APIs, names, time limits, units and reasons.

Node, bridge and operator import each fact from here, so that a misspelt key is a type error.
"""
