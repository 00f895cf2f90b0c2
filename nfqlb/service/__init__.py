"""What makes nfqlb a service of a machine: unit, man pages, completion, groups, and the installer."""
