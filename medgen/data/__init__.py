"""Files and phantoms to batches: readers, manifest, sources of cases, the step-indexed stream, the DataModule."""
