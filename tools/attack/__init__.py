"""Attack what the course writes: kill it, let the disk fail, and count the losses.

    python -m tools.attack          # writes docs/reliability.md
    python -m tools.attack --share 0.05 --parts dataset report --page short.md

`parts` and `trainings` are under attack, `processes` starts and kills them, `faults`
lets system calls fail, `target` judges what is left, `trials` are the attacks, `run`
attacks a part with each, and `page` writes the table.
"""
