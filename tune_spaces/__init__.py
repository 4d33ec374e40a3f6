"""Search spaces that come with raykd: `raykd tune RECIPE NAME`."""
