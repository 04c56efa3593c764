package app.rbac

import data.app.names

# The same package in another file: the rules of both are one.
permissions contains {"action": "greet", "type": "world"} if input.user

greeting := names.greet(input.user)
