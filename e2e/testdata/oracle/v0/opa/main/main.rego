package system

main = {"answer": "zero"} {
	input.request
}
