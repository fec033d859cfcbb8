package proxy

// Updates reports whether Compile makes the table from the previous one.
func Updates(in Input) bool {
	c := compiler{in: in}
	return c.update()
}

// Count counts the clients that are there.
func (a *Affinity) Count() int {
	n := 0
	for i := range a.shards {
		for at := range a.shards[i].entries {
			if a.shards[i].entries[at].last().used() {
				n++
			}
		}
	}
	return n
}
