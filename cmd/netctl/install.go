package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/deploy"
)

// chartFlags say how an installation differs from the default one.
type chartFlags struct {
	namespace, image string
	set, files       []string
}

func (f *chartFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.namespace, "namespace", "n", deploy.DefaultNamespace, "namespace of the agents")
	flags.StringVar(&f.image, "image", "", "image of the agents (default what this version is called)")
	flags.StringArrayVar(&f.set, "set", nil, "set an option: KEY=VALUE, as for Helm; may be repeated")
	flags.StringArrayVarP(&f.files, "values", "f", nil, "file of options, '-' for standard input; may be repeated")
}

// options reads what the flags name. Later files lie over earlier ones, --set
// over files, --image over all.
func (f *chartFlags) options(stdin io.Reader) (deploy.Options, error) {
	o := deploy.Options{Namespace: f.namespace, Values: deploy.Values{}}
	for _, name := range f.files {
		data, err := readValues(name, stdin)
		if err != nil {
			return o, fmt.Errorf("--values: %w", err)
		}
		v, err := deploy.ParseValues(data, name)
		if err != nil {
			return o, fmt.Errorf("%w: --values: %w", errUsage, err)
		}
		o.Values = o.Values.Overlay(v)
	}
	for _, text := range f.set {
		var err error
		if o.Values, err = o.Values.Set(text); err != nil {
			return o, fmt.Errorf("%w: --set: %w", errUsage, err)
		}
	}
	if f.image != "" {
		v, err := deploy.ImageValues(f.image)
		if err != nil {
			return o, fmt.Errorf("%w: --image: %w", errUsage, err)
		}
		o.Values = o.Values.Overlay(v)
	}
	return o, nil
}

func readValues(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

// render makes the objects of an installation.
func (f *chartFlags) render(stdin io.Reader) ([]deploy.Document, error) {
	o, err := f.options(stdin)
	if err != nil {
		return nil, err
	}
	docs, err := deploy.Render(o)
	if errors.Is(err, deploy.ErrValue) {
		err = fmt.Errorf("%w: %w; see 'netctl install --show-values'", errUsage, err)
	}
	return docs, err
}

func newInstall(io streams) *cobra.Command {
	var f chartFlags
	var dryRun, showValues bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Print the manifests that install netctl on a Kubernetes cluster",
		Long: `Print the manifests that install netctl on a Kubernetes cluster, for
'kubectl apply -f -'. They are what the Helm chart renders, and without flags
what deploy/netctl.yaml holds. Nothing is changed by the command itself.`,
		Example: `  netctl install | kubectl apply -f -
  netctl install --set config.mtu=1400 --set config.proxy=pods | kubectl apply -f -
  netctl install --show-values > values.yaml`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if showValues {
				_, err := io.out.Write(deploy.ValuesFile())
				return err
			}
			docs, err := f.render(io.in)
			if err != nil {
				return err
			}
			_, err = io.out.Write(deploy.YAML(docs))
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&showValues, "show-values", false, "print every option at its default, with what it means, and nothing else")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print only, which is what the command does anyway")
	return cmd
}
