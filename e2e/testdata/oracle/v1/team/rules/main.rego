package team.rules

import rego.v1

violations contains message if {
	some pod in input.pods
	not pod.labels.team in data.team.settings.teams
	message := sprintf("pod %s: no such team", [pod.name])
}

uses_library := data.app.names.greet("team")

every_is_fine if {
	every pod in input.pods {
		pod.labels.team in data.team.settings.teams
	}
}
