"""Random changes of training images: one draw moves all images and label maps of a case, changes of intensity touch named channels."""

from medgen.data.augment.basic import Augment as Augment
from medgen.data.augment.changes import Changes as Changes
