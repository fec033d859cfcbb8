package model

// Notice is what a node has to say about an object of the cluster to its owner: an
// Event, where there is an API server.
type Notice struct {
	Kind    string // Service or Node
	Name    Name   // without a namespace for a Node
	UID     string
	Reason  string // one word, such as NodePortConflict
	Text    string
	Warning bool
}
