"""Audits of accepted answers, and the test that watches their error."""
