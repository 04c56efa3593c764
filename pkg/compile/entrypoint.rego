# What answers the webhook where no policy defines data.system.main: what the rules deny,
# warn and patch say, of data.kubernetes.admission and of the packages below it. Others may
# have rules in this package, so its helpers have names that nobody else takes.
package system

main := {
	"apiVersion": input.apiVersion,
	"kind": input.kind,
	"response": object.union_n([
		{"uid": input.request.uid},
		_kube_rego_verdict(_kube_rego_texts("deny", _kube_rego_said("deny"))),
		_kube_rego_warnings(_kube_rego_texts("warn", _kube_rego_said("warn"))),
	]),
}

# What each rule says, behind the names of its package below data.kubernetes.admission.
# kube-rego writes these three anew for each policy set, and asks only for rules that there
# are. In a set with deny in the packages kubernetes.admission, .images and .labels:
_kube_rego_said("deny") := [
	[[[], said] | said := data.kubernetes.admission.deny; said != set()],
	[[[a], said] | some [a] in [["images"], ["labels"]]; said := data.kubernetes.admission[a].deny; said != set()],
]

_kube_rego_said("warn") := []

_kube_rego_said("patch") := []

_kube_rego_verdict(denials) := {"allowed": false, "status": {"code": 403, "message": concat(", ", denials)}} if {
	count(denials) > 0
}

_kube_rego_verdict(denials) := object.union({"allowed": true}, _kube_rego_patch(_kube_rego_operations(_kube_rego_said("patch")))) if {
	count(denials) == 0
}

_kube_rego_warnings(warnings) := {"warnings": sort(warnings)} if {
	count(warnings) > 0
} else := {}

_kube_rego_patch(operations) := {"patchType": "JSONPatch", "patch": base64.encode(json.marshal(operations))} if {
	count(operations) > 0
} else := {}

# The texts of all rules of a name, each once.
_kube_rego_texts(name, rules) := {text |
	[names, value] := rules[_][_]
	not _kube_rego_is_nothing(value)
	path := concat(".", array.concat(["data.kubernetes.admission"], array.concat(names, [name])))
	some text in _kube_rego_texts_of(path, value)
}

# What a rule gives that has nothing to say.
_kube_rego_is_nothing(value) if value in {false, null, "", set(), [], {}}

# A rule gives a set or an array of texts, or a single one, or only true.
_kube_rego_texts_of(path, value) := {_kube_rego_text(member) | some member in value} if {
	_kube_rego_is_list(value)
} else := {message} if {
	message := _kube_rego_message(value)
} else := {text |
	some key, member in value
	not _kube_rego_is_nothing(member)
	some text in _kube_rego_texts_at(key, member)
} if {
	is_object(value)
} else := {concat(" ", [path, "is true"])} if {
	value == true
} else := {_kube_rego_text(value)}

# In Rego v1 deny[text] if { ... } makes an object with the text as a key and true at it.
_kube_rego_texts_at(key, member) := {_kube_rego_text(key)} if {
	member == true
} else := {_kube_rego_text(text) | some text in member} if {
	_kube_rego_is_list(member)
} else := {text} if {
	text := _kube_rego_message(member)
} else := {member} if {
	is_string(member)
} else := {_kube_rego_text({key: member})}

# What is no text and holds none is told as it is.
_kube_rego_text(value) := value if {
	is_string(value)
} else := text if {
	text := _kube_rego_message(value)
} else := json.marshal(value)

_kube_rego_message(value) := value.msg if {
	is_object(value)
	is_string(value.msg)
} else := value.message if {
	is_object(value)
	is_string(value.message)
}

_kube_rego_is_list(value) if is_set(value)

_kube_rego_is_list(value) if is_array(value)

# The operations in sets come first, each once, in the order that Rego gives sets: a parent
# that several rules add is made once and before its children. What stands in arrays stays
# in its order and comes after them, package by package.
_kube_rego_operations(rules) := array.concat(
	sort({operation |
		[_, value] := rules[_][_]
		is_set(value)
		some operation in value
		not is_array(operation)
	}),
	[operation |
		some [_, value] in sort([rule | rule := rules[_][_]])
		not _kube_rego_is_nothing(value)
		some operations in _kube_rego_operations_of(value)
		some operation in operations
	],
)

# Arrays of operations: one rule may give several.
_kube_rego_operations_of(value) := [operations | some operations in value; is_array(operations)] if {
	is_set(value)
} else := [value] if {
	is_array(value)
} else := [operations |
	some key in sort(object.keys(value))
	not _kube_rego_is_nothing(value[key])
	operations := _kube_rego_operations_at(key, value[key])
] if {
	is_object(value)
	not value.op
} else := [[value]]

_kube_rego_operations_at(key, member) := [key] if {
	member == true
} else := member if {
	is_array(member)
} else := sort(member) if {
	is_set(member)
} else := [member]
