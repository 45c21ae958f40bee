"""Job scripts: where the templates lie, whether a job's numbers fit, a template filled in."""
