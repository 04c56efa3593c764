# METADATA
# scope: package
# labels:
#   team: platform
package labelled

# METADATA
# labels:
#   rule: first
allow if input.role == "admin"

# METADATA
# labels:
#   rule: second
allow if input.role == "owner"

# METADATA
# description: has no labels of its own
plain := 1
