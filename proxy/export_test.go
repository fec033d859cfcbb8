package proxy

// Updates reports whether Compile makes the table from the previous one.
func Updates(in Input) bool {
	c := compiler{in: in}
	return c.update()
}
