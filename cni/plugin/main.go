// Command plugin is the CNI plugin netctl-cni, the program that a container
// runtime executes for every operation on a pod. It is package shim with a
// main function and links the standard library only, because its start-up is
// paid by every pod (a test here holds that). The agent carries it inside and
// writes it to the runtime's plugin directory.
package main

import (
	"os"

	"github.com/netctl/netctl/cni/shim"
)

func main() {
	os.Exit(shim.Main(shim.Process{
		Name:   os.Args[0],
		Getenv: os.Getenv,
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	}))
}
