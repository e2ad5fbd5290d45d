"""One file per layout. A module here that defines `LAYOUT` is a layout that scan recognises; nothing else is edited."""
