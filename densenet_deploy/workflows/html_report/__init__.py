"""The HTML report: `load` reads models and reports, `decide` picks the model to ship, `view` fills the `page`."""
