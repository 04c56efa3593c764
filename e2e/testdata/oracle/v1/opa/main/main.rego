# The default decision, which answers POST /.
package system

main := {
	"answer": answer,
	"input": object.get(input, "request", "none"),
}

default answer := "no"

answer := "yes" if input.request.user == "alice"

# A user whose answer is a conflict, to see an error at POST /.
answer := "both" if {
	input.request.user == "alice"
	input.request.conflict
}
