"""SIDDHI (सिद्धि, accomplishment): from a complaint to a validated product, under a budget that cannot break."""
