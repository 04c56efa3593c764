package app.names

greet(name) := "Good day" if name == "alice"

greet(name) := concat(" ", ["Hello", name]) if name != "alice"

uppercase := upper_of(input.name)

upper_of(name) := result if {
	result := upper(name)
} else := "none"
