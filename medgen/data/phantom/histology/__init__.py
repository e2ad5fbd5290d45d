"""H&E tiles drawn from a seed: tissue as functions of position in micrometres, stains by Beer-Lambert, a data source."""
