package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var input struct {
		Template string
		Chats    [][]Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	empty := template.New("").Option("missingkey=zero")
	parsed := template.Must(empty.Parse(input.Template))
	texts := []string{}
	for _, chat := range input.Chats {
		system := []string{}
		for _, message := range chat {
			if message.Role == "system" {
				system = append(system, message.Content)
			}
		}
		var text strings.Builder
		err := parsed.Execute(&text, map[string]any{
			"System": strings.Join(system, "\n\n"), "Messages": chat, "Response": "",
		})
		if err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
