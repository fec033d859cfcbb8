package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/cni"
)

func newCNI(io streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cni",
		Short: "The CNI plugin: run by a container runtime, or install it for one",
		Long: `Without a subcommand this is the CNI plugin itself (specification 1.1): a
container runtime sets CNI_COMMAND and writes the configuration to standard input.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if code := plugin(); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	cmd.AddCommand(cniInstall(io), cniUninstall(io))
	return cmd
}

func installFlags(cmd *cobra.Command, in *cni.Installation) {
	cmd.Flags().StringVar(&in.BinDir, "bin-dir", cni.DefaultBinDir, "where the container runtime looks for plugins")
	cmd.Flags().StringVar(&in.ConfDir, "conf-dir", cni.DefaultConfDir, "where the container runtime looks for networks")
}

func cniInstall(io streams) *cobra.Command {
	var in cni.Installation
	cmd := &cobra.Command{
		Use:     "install",
		Short:   "Write the plugin and its configuration to where a runtime finds them",
		Example: `  netctl cni install --socket /run/netctl/cni.sock`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r, err := cni.Install(in)
			if err != nil {
				return err
			}
			for _, name := range r.Before {
				if _, err := fmt.Fprintf(io.err, "warning: the runtime reads %s/%s first and will not use netctl; remove or rename it\n", in.ConfDir, name); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(io.out, "plugin written: %t, loopback added: %t, configuration written: %t\n", r.BinaryWritten, r.LoopbackAdded, r.ConflistWritten)
			return err
		},
	}
	installFlags(cmd, &in)
	cmd.Flags().StringVar(&in.Conflist.Socket, "socket", "/run/netctl/cni.sock", "the agent's socket")
	return cmd
}

func cniUninstall(io streams) *cobra.Command {
	var in cni.Installation
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take back what install wrote, and nothing else",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			removed, err := cni.Uninstall(in)
			for _, path := range removed {
				fmt.Fprintln(io.out, "removed", path)
			}
			return err
		},
	}
	installFlags(cmd, &in)
	return cmd
}
