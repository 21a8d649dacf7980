/* Registers the container flags that Pyxis gives srun and tells the task what it was given.
   It opens no container: what the flags say, and that srun takes them, is all that it shows. */
#include <slurm/spank.h>
#include <string.h>

SPANK_PLUGIN(fake_pyxis, 1)

enum { IMAGE, MOUNTS, WORKDIR, ENVIRONMENT, NO_HOME, OPTIONS };

static const char *const variables[OPTIONS] = {
    "FAKE_PYXIS_IMAGE", "FAKE_PYXIS_MOUNTS", "FAKE_PYXIS_WORKDIR", "FAKE_PYXIS_ENV",
    "FAKE_PYXIS_NO_HOME",
};
static char *values[OPTIONS];

static int keep(int which, const char *value, int remote)
{
    values[which] = strdup(value && *value ? value : "1");
    return 0;
}

static struct spank_option options[] = {
    {"container-image", "IMAGE", "image", 1, IMAGE, keep},
    {"container-mounts", "SRC:DST[:FLAGS]", "mounts", 1, MOUNTS, keep},
    {"container-workdir", "PATH", "work directory", 1, WORKDIR, keep},
    {"container-env", "NAME[,NAME...]", "variables of the host that win", 1, ENVIRONMENT, keep},
    {"no-container-mount-home", NULL, "leave the home directory out", 0, NO_HOME, keep},
    SPANK_OPTIONS_TABLE_END,
};

int slurm_spank_init(spank_t spank, int count, char **arguments)
{
    if (spank_context() == S_CTX_SLURMD)
        return 0;
    for (int i = 0; options[i].name; i++)
        if (spank_option_register(spank, &options[i]))
            return -1;
    return 0;
}

int slurm_spank_task_init(spank_t spank, int count, char **arguments)
{
    for (int i = 0; i < OPTIONS; i++)
        if (values[i])
            spank_setenv(spank, variables[i], values[i], 1);
    return 0;
}
