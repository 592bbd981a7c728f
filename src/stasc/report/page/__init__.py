"""The report as one HTML file, with its charts as SVG and PNG."""
