"""From a folder of images to a manifest. The layouts that are recognised are the modules of `medgen.data.scan.layouts`."""
