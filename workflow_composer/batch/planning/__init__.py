"""The plan of a data set: policies, costs, and the probe that predicts difficulty."""
