"""The items of reporting guidelines, and which of them a result answers."""

CHECKLISTS = ()
