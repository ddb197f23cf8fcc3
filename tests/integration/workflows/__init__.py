"""Forty ways in which chains of model calls went wrong for people, each as a test of the command line.

The tests know a workflow's file, its table, and the servers; they import nothing of the package.
"""
